"""What commands and public functions do from end to end."""
