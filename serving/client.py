"""The client's former place, kept for programs that import it here: see atelier/client.py and atelier/classify.py."""

import sys

from atelier.classify import main
from atelier.client import Answer, AsyncClient, ClassifyError, Client, ModelDescription, Prediction, program_errors
from atelier.program import run_program

__all__ = ["Answer", "AsyncClient", "ClassifyError", "Client", "ModelDescription", "Prediction", "program_errors"]

if __name__ == "__main__":
    sys.exit(run_program(main))
