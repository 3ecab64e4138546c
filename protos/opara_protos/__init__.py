"""Generated stubs of the `opara.v1` protocol; `bash protos/generate.sh` writes them."""
