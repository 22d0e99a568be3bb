"""What every part uses: files, settings of the process, progress."""
