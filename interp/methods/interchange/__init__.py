"""Methods compared by interchange interventions: docs/add_a_method.md shows how to add one."""
