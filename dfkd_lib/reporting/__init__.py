"""What a notebook leaves behind: its report, the papers' tables, the summary over all notebooks."""
