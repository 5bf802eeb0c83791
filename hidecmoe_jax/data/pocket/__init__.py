"""The pocket data: pictures the project draws, what can be said about them, and the tasks made of them."""
