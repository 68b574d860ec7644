"""The inputs that a candidate is judged on: named cases, the battery, user data, and the file that replays one."""
