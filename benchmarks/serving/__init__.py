"""The plugin inside vLLM: is it right (parity), does it last (load), what does it cost (overhead)."""
