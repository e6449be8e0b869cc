"""The ways people put their questions; braces take what is asked about."""

ASK_WHERE = ("left", "right", "above", "below")
WORDS_WHERE = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}
ASK_DESCRIBE = (
    "Describe the image.",
    "Describe this image.",
    "Describe this picture.",
    "Describe the picture in detail.",
    "What do you see?",
    "What is in this image?",
    "What's in the picture?",
    "What is this?",
    "What is shown here?",
    "Tell me what you see.",
    "Describe the scene.",
    "What can you see in this photo?",
    "Caption this image.",
    "What does the image show?",
    "Describe this image in detail.",
    "Please describe the image.",
    "describe",
    "List the objects in the image.",
    "Give me a description of this picture.",
    "Which objects are there?",
    "Provide a full description of the given image.",
    "Describe the image in detail.",
)
ASK_COUNT_ALL = (
    "How many objects are there?",
    "How many shapes are there?",
    "How many things are in the picture?",
    "Count the objects.",
    "How many shapes do you see?",
    "What is the number of objects?",
    "How many objects can you see in this image?",
    "Count the shapes.",
)
ASK_COUNT = (
    "How many {} are there?",
    "Count the {}.",
    "How many {} do you see?",
    "How many {} are in the image?",
    "What is the number of {}?",
    "how many {}",
    "How many {} can you see?",
    "How many {} does the picture have?",
)
ASK_COLOUR = (
    "What {c} is {x}?",
    "Which {c} is {x}?",
    "What is the {c} of {x}?",
    "What {c} does {x} have?",
    "Tell me the {c} of {x}.",
    "{c} of {x}?",
    "Name the {c} of {x}.",
    "What's the {c} of {x}?",
)
ASK_SHAPE = (
    "What shape is {x}?",
    "What is the shape of {x}?",
    "Which shape is {x}?",
    "What shape does {x} have?",
    "Name the shape of {x}.",
    "What kind of shape is {x}?",
    "What's the shape of {x}?",
)
ASK_SIZE = (
    "How big is {x}?",
    "What size is {x}?",
    "How large is {x}?",
    "Is {x} small, medium or large?",
    "What is the size of {x}?",
    "Tell me the size of {x}.",
)
ASK_PLACE = (
    "Where is {x}?",
    "Where is {x} in the image?",
    "In which part of the picture is {x}?",
    "Where can I find {x}?",
    "What is the position of {x}?",
    "Where's {x}?",
)
ASK_RELATION = (
    "What is {r} {x}?",
    "What's {r} {x}?",
    "Which objects are {r} {x}?",
    "What do you see {r} {x}?",
    "Name everything {r} {x}.",
    "List what is {r} {x}.",
    "Which shapes are {r} {x}?",
)
ASK_IS_RELATION = (
    "Is {x} {r} {y}?",
    "is {x} {r} {y}?",
    "Would you say that {x} is {r} {y}?",
    "Can you tell me if {x} is {r} {y}?",
)
ASK_EXISTS = (
    "Is there {x}?",
    "Is there {x} in the image?",
    "Do you see {x}?",
    "Does the picture have {x}?",
    "Can you see {x}?",
    "Is {x} in this picture?",
    "Does the image contain {x}?",
    "Is there {x} here?",
)
ASK_ANY = (
    "Are there any {}?",
    "Do you see any {}?",
    "Does the image contain {}?",
    "Any {} in the picture?",
    "Are there {} in this image?",
    "Is there any of the {}?",
)
ASK_LARGEST = (
    "What is the {s} object?",
    "Which object is the {s}?",
    "Which shape is the {s}?",
    "What is the {s} thing?",
    "Which is the {s}?",
    "Name the {s} object.",
    "What's the {s} shape?",
    "Which one is the {s}?",
)
ASK_READ = (
    "What does it say?",
    "What is written in the image?",
    "Read the text.",
    "What is the text?",
    "What text is shown?",
    "What word is printed?",
    "What does the text say?",
    "What is written here?",
    "Read what is printed.",
    "Which word or number do you see?",
    "What's written?",
    "What number is shown?",
    "Can you read the text?",
    "Please read the text in the image.",
    "What does the sign say?",
)
ASK_TEXT = (
    "Is there any text?",
    "Is there text in the image?",
    "Is anything written here?",
    "Do you see any writing?",
    "Does the picture contain text?",
    "Is there a word or number in the picture?",
)
FOLLOW_PLACE = ("Where is it?", "And where is it?", "Where is that?")
FOLLOW_SIZE = ("How big is it?", "What size is it?", "And how large is it?")
FOLLOW_COLOUR = ("What {c} is it?", "And its {c}?", "Which {c} is it?")
FOLLOW_RELATION = ("What is {r} it?", "And what is {r} it?", "Which objects are {r} it?")
