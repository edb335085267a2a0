"""What people read of an evaluation: one self-contained HTML page, or Markdown."""
