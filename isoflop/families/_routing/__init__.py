"""What the routed families share: router shapes and ledger (spec), router modules (module)."""
