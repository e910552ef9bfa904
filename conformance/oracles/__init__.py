"""Scripts that run inside the oracles' environments; they import no module of ours and communicate through files."""
