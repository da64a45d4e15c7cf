#!/bin/sh
# Makes src/mooring_client/openapi.py of docs/openapi.json, with the tools of tests/requirements.txt.
set -eu
cd "$(dirname "$0")"
datamodel-codegen \
    --input ../../docs/openapi.json --input-file-type openapi --openapi-scopes schemas \
    --output src/mooring_client/openapi.py --output-model-type typing.TypedDict \
    --target-python-version 3.10 --use-standard-collections --use-union-operator \
    --use-schema-description --use-field-description --disable-timestamp --formatters black isort
