#!/bin/sh
# MLflow with basic auth. Its own file for that wants the database's address, password included, so the file is
# written when the server starts, into memory (TMPDIR is a tmpfs), and never into an image or a volume.
set -eu
: "${MLFLOW_BACKEND_STORE_URI:?PostgreSQL of the runs}" "${MLFLOW_AUTH_DATABASE_URI:?PostgreSQL of the users}"
: "${MLFLOW_AUTH_ADMIN_USERNAME:?}" "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
umask 077
MLFLOW_AUTH_CONFIG_PATH="${TMPDIR:-/tmp}/basic_auth.ini"
# configparser reads % as an interpolation
uri=$(printf '%s' "$MLFLOW_AUTH_DATABASE_URI" | sed 's/%/%%/g')
# the cache: hashing a password costs a tenth of a second, for every request of a run
printf '[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\ndatabase_uri = %s\nauthorization_function = %s\n' \
  "$uri" "mlflow.server.auth:authenticate_request_basic_auth" >"$MLFLOW_AUTH_CONFIG_PATH"
export MLFLOW_AUTH_CONFIG_PATH
if [ -n "${VDMINI_SPOOL:-}" ]; then
  export TMPDIR="$VDMINI_SPOOL"  # files on their way, which memory has no room for; the passwords stay above
fi
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 "$@"
