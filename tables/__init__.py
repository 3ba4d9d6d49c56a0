"""How each table under figures/ that holds trained models' results was made: a command for each, which resumes."""
