-- What a new PostgreSQL server gets: MLflow's two databases, and that of the studies, each user with its own only.
\set ON_ERROR_STOP on
\set mlflow_password `cat "$SECRETS/mlflow-db-password"`
\set studies_password `cat "$SECRETS/studies-db-password"`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE ROLE wsol LOGIN PASSWORD :'studies_password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE studies OWNER wsol;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, studies FROM PUBLIC;
