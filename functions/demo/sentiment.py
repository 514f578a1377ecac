"""One function that all four kinds of clients call: ours, Kernel's, Cognite's and Nyckel's. README.md shows how.

curl http://127.0.0.1:8000/spaces/demo/functions/sentiment/invoke --json '{"text": "what a lovely day"}'
"""

GOOD = {"good", "great", "happy", "love", "lovely", "nice", "thanks", "wonderful"}
BAD = {"angry", "awful", "bad", "broken", "hate", "horrible", "never", "sad"}


def handle(data):
    text = data if isinstance(data, str) else data.get("text", "")
    words = {word.strip(".,!?") for word in text.lower().split()}
    good, bad = len(words & GOOD) + 1, len(words & BAD) + 1
    positive = round(good / (good + bad), 3)
    return {"positive": positive, "negative": round(1 - positive, 3)}
