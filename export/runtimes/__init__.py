"""The served model in other frameworks and runtimes: `make runtimes`."""
