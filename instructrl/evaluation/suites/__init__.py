"""Public test sets, put to any model: `protocol` says what a suite is, a module has each family, `table` lists them."""
