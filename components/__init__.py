"""What runs inside containers: a family a folder, over the shared rooms beside them."""
