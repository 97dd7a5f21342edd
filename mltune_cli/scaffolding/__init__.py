"""What a new project needs, and writing it so that nothing of the user's is lost."""
