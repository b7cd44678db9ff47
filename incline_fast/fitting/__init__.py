"""From hidden states to an alignment: estimators, presets, and the memory that a fit takes."""
