"""Tasks: records -> rows, rows -> model inputs, model outputs -> per-sample results and metric.

Knows nothing about layers, PyTorch or ONNX: inputs and outputs are NumPy arrays, so that the live
network and the exported file are fed and scored by the same code. Names are Optimum's. To add a
task, write a `Task` subclass in a module here, register it in `TASKS`, and import it below.

Shapes: N samples, B rows of a batch, T tokens, P positions where an answer is read, C classes.
"""

from __future__ import annotations

from .asking import Readings
from .audio_classification import AudioClassification
from .base import (
    TASKS,
    Batch,
    Inputs,
    Position,
    Processor,
    ProcessorOptions,
    Task,
)
from .dividing import Division
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .image_classification import ImageClassification
from .multiple_choice import MultipleChoice
from .polynomial_regression import PolynomialRegression
from .prompting import load_prompting
from .question_answering import QuestionAnswering
from .scoring import Scores
from .speech_recognition import SpeechRecognition
from .text2text_generation import Text2TextGeneration
from .text_classification import TextClassification
from .text_generation import TextGeneration
from .token_classification import TokenClassification
from .tokenizing import random_texts
from .writing import answering
from .zero_shot_image_classification import ZeroShotImageClassification

__all__ = [
    "TASKS",
    "AudioClassification",
    "Batch",
    "Division",
    "FeatureExtraction",
    "FillMask",
    "ImageClassification",
    "Inputs",
    "MultipleChoice",
    "PolynomialRegression",
    "Position",
    "Processor",
    "ProcessorOptions",
    "QuestionAnswering",
    "Readings",
    "Scores",
    "SpeechRecognition",
    "Task",
    "Text2TextGeneration",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "ZeroShotImageClassification",
    "answering",
    "load_prompting",
    "random_texts",
]
