"""Everything that holds a process or a GPU, and the records that travel between them."""
