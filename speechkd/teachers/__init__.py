"""Teacher backends: each is one file and one line of this table."""

from __future__ import annotations

from speechkd.core.table import Table
from speechkd.teachers.base import TeacherType

TEACHERS: Table[TeacherType] = Table(
    "teacher backend",
    {
        "hf_audio": "speechkd.teachers.hf_audio:HfAudioTeacher",
        "hf_local": "speechkd.teachers.hf_local:HfLocalTeacher",
        "label": "speechkd.teachers.label:LabelTeacher",
        "openai_http": "speechkd.teachers.openai_http:OpenAIHttpTeacher",
        "self": "speechkd.teachers.student_llm:StudentLlmTeacher",
        "snapshot": "speechkd.teachers.snapshot:SnapshotTeacher",
        "vllm": "speechkd.teachers.vllm_local:VllmTeacher",
    },
    group="speechkd.teachers",
)
