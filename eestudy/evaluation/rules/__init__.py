"""Exit rules, a file each: how sure an exit is, as one number, and the thresholds it is compared with."""
