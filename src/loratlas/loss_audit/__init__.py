"""Every definition of loss, what lies between two of them, and which one printed a number."""
