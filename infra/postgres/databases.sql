-- Run once, by the first start of an empty volume: one database for each of the servers.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
CREATE DATABASE prefect;
