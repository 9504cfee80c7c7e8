"""The team's servers on one machine: PostgreSQL, S3, MLflow, Prefect and two Ray nodes, bound to localhost.

`setup` says where they are and holds their passwords, `programs` how each is started, `control` starts and
stops them by supervisor, `checks` signs in at each. `vdmini services` and `vdmini doctor` are the doors.
"""
