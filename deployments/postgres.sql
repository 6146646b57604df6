-- Run once, when PostgreSQL makes its cluster: the extension that Prefect needs, and a database for Optuna's studies.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE DATABASE optuna;
