"""Where the time of a step goes: named ranges, the profilers' command lines, traces and their summary."""
