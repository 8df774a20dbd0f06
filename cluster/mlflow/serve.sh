#!/bin/sh
# MLflow for a team: users with passwords, its tables in PostgreSQL (PGHOST), its files in $ARTIFACTS, through the server.
#
# Reads from the folder $SECRETS: mlflow-db-password, mlflow-admin-password (used once, to make the user `admin`) and
# mlflow-session-key. Without one of them nothing starts. $ALLOWED_HOSTS are the names under which clients ask for it.
set -eu

secret() {
  test -s "$SECRETS/$1" || { echo "MLflow needs the secret $SECRETS/$1, which is missing or empty." >&2; exit 2; }
  cat "$SECRETS/$1"
}
PGPASSWORD=$(secret mlflow-db-password)
MLFLOW_AUTH_ADMIN_PASSWORD=$(secret mlflow-admin-password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow-session-key)
export PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export PGUSER=mlflow MLFLOW_AUTH_CONFIG_PATH="${0%/*}/auth.ini"

# A worker imports for seconds, on a busy machine for many: by default it counts as dead after five, again and again.
exec mlflow server --app-name basic-auth --host "${LISTEN:-127.0.0.1}" --port 5000 \
  --backend-store-uri postgresql+psycopg:///mlflow --artifacts-destination "$ARTIFACTS" \
  --allowed-hosts "$ALLOWED_HOSTS" --uvicorn-opts "--timeout-worker-healthcheck 120" "$@"
