"""What runs inside the other environments: scripts that import nothing of ours and speak through files."""
