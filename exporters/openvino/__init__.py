"""Write OpenVINO's own format, with matrices and what they are multiplied by in eight bits."""
