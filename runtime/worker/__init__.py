"""What runs inside a function's own interpreter: standard library only, relative imports only."""
