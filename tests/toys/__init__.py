"""One file each: what adding a precision, a target, a task or a source takes. See tests/test_one_file.py."""
