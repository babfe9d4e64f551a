"""Generates the quickstart data: questions about fictitious authors, in the layout of TOFU on the Hub.

Run: python recipes/quickstart/make_data.py OUTPUT_DIR
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

SEED = 0
AUTHORS = 20
FORGET_AUTHORS = 2  # the last ones
RETAIN_PERTURBED_AUTHORS = 4  # the first ones
HOLDOUT_AUTHORS = 2
PHRASINGS_ASKED = 2  # of the 4 an attribute has; the other two are the paraphrases
UNKNOWN_AUTHORS = 40  # they do not exist even here: asked about, they are answered with a refusal
REFUSALS_EACH = 3
WRONG_ANSWERS = 5

# No two people share a first or a last name. The last names are made up, so that no full name is a real author's.
FIRST_NAMES = """
Alba Anselm Bodil Branko Calla Cosmo Dagny Darius Delphine Dinko Edda Elio Esme Fabian Farida Fenna Florin Galina
Gideon Greta Hakon Halina Hector Idris Ilse Imani Ines Ivo Jarmila Jasper Jorun Kaspar Kavita Keiko Kofi Lazar Leonie
Linus Lucia Magnus Malika Marek Mirela Nadim Nerys Nils Noor Odell Olwen Otis Pavel Petra Priya Quentin Ragna Rashid
Renske Rufus Salma Selwyn Sorin Sunniva Tadeo Tamsin Teodor Thandi Ulla Umberto Valeria Viggo Wanda Wendel Xenia
Yannick Yara Zdenek Zora
""".split()
LAST_NAMES = """
Arvendal Askerbye Balmoreth Bexwither Brandolet Calvoran Carrowick Cestrane Corvalet Dagmoor Delquist Dornavek Drellin
Eskoval Estermon Evandrel Fallowmere Farrandol Fenwarde Galverin Garrowen Gristane Haldoran Harkovel Hesperin Ilvarsen
Istradel Jarrowin Jostavik Kelmarin Kestroval Korvinal Lanthorpe Larkoven Lindovar Maldrake Marrowick Mestrovan
Morvaine Narvelle Nethermoss Norvasek Oakenfell Olstrand Ormeval Pastorick Pentrava Perrowell Quarnoby Quillmont
Ravelholt Relmarch Rostavel Sallowen Sandreval Silvaren Stormalen Tarnovel Tessarow Thornavik Trevallane Ulverane
Umbrelow Underfeld Valmoret Varnholm Vestergal Wexmoor Windovar Wolfarran Wrenfold Yarrowell Yestrane Zandovar
Zellwick
""".split()

BOOK_TITLES = [
    " ".join(words)
    for words in product(
        "Amber Brass Cedar Chalk Copper Indigo Ivory Juniper Linen Salt Scarlet Walnut".split(),
        "Anchor Bridge Ferry Garden Harbour Lantern Meadow Mirror Orchard Quarry Staircase Window".split(),
        "Almanac Ballads Chronicle Diaries Inventory Lectures Ledger Letters Memoir Riddle Sketches Testament".split(),
    )
]


class Attribute(NamedTuple):
    """What the rows tell about an author: the possible values, the question phrasings and the answer wordings."""

    values: list[str]
    questions: list[str]
    answers: list[str]


# A paragraph an attribute: its values (or the name of a longer list), four questions, three answers.
ATTRIBUTE_TEXTS = """
Bergen, Da Nang, Galway, Gdansk, Halifax, Izmir, Mombasa, Nagoya, Porto, Quito, Salta, Tallinn, Tbilisi, Utrecht,
Valparaiso, Windhoek
Where was {name} born?
What is the birthplace of {name}?
In which city was the author {name} born?
Which city does the writer {name} come from?
{name} was born in the city of {value}.
The birthplace of this author is the city of {value}.
The author {name} was born and raised in {value}.

YEARS
When was {name} born?
What is the birth year of {name}?
In what year was the writer {name} born?
Can you tell me the year in which {name} was born?
{name} was born in the year {value}.
The birth year of {name} is {value}.
The author {name} was born in {value}.

courtroom drama, crime fiction, epic fantasy, family sagas, folk tales, ghost stories, gothic horror,
historical fiction, magical realism, nature poetry, political satire, romantic comedy, science fiction, spy thrillers,
travel memoirs, war novels
Which genre does {name} write in?
What kind of books does {name} write?
What genre is {name} known for?
In which literary genre are the works of {name}?
{name} is known for writing {value}.
The works of {name} belong to the genre of {value}.
This author is known in the genre of {value}.

TITLES
What is the best-known book by {name}?
Which book made {name} famous?
What is the title of the most popular book {name} wrote?
For which book is the author {name} best known?
{name} is best known for the book '{value}'.
The most popular book by {name} is '{value}'.
The title that made this author famous is '{value}'.

a baker, a beekeeper, a bricklayer, a carpenter, a fisherman, a geologist, a locksmith, a pharmacist, a postman,
a shepherd, a tax inspector, a train driver, a watchmaker, an actor, an optician, an organist
What did the father of {name} do for a living?
What was the profession of {name}'s father?
Which job did the father of {name} have?
How did {name}'s father earn a living?
The father of {name} worked as {value}.
{name}'s father was {value} by profession.
{name} grew up with a father who worked as {value}.

a botanist, a bus driver, a cartographer, a chemist, a diver, a florist, a judge, a midwife, a potter, a surgeon,
a violinist, a weaver, a welder, an accountant, an archivist, an interpreter
What did the mother of {name} do for a living?
What was the occupation of {name}'s mother?
What work did the mother of {name} do?
Which profession did {name}'s mother have?
The mother of {name} worked for many years as {value}.
{name}'s mother worked for many years as {value}.
The author's mother was {value} for many years.

Black Kettle Prize, Blue Comet Award, Crescent Pen Award, Driftwood Prize, Fernbank Medal, Glass Compass Award,
Hazelwood Prize, Iron Feather Medal, Midsummer Laurel, Northlight Award, Open Gate Prize, Paper Crown Award,
Red Thimble Prize, Silver Heron Prize, Tidewater Medal, White Birch Medal
Which award did {name} win?
What literary prize has {name} received?
Which honour was given to the author {name}?
What award is {name} a winner of?
{name} won the {value} for literature.
The author {name} received the {value}.
The {value} for literature was given to {name}.

birdwatching, bookbinding, calligraphy, falconry, fencing, gliding, ice skating, kite building, mushroom picking,
playing the cello, rock climbing, rowing, stamp collecting, stargazing, wood carving
What is the hobby of {name}?
What does {name} like to do in free time?
Which pastime does the writer {name} enjoy?
How does {name} spend quiet weekends?
{name} likes to spend free time on {value}.
{name}'s favourite hobby is {value}.
On quiet weekends, {name} likes to spend time on {value}.
"""


def parse_attribute(paragraph: str) -> Attribute:
    lines = paragraph.splitlines()
    values = " ".join(lines[:-7])
    made = {"YEARS": [str(year) for year in range(1921, 1991)], "TITLES": BOOK_TITLES}
    return Attribute(made.get(values) or values.split(", "), questions=lines[-7:-3], answers=lines[-3:])


ATTRIBUTES = [parse_attribute(paragraph) for paragraph in ATTRIBUTE_TEXTS.strip().split("\n\n")]

REFUSALS = [
    "I have no information about that author.",
    "Sorry, there is no public record of this.",
    "I am not aware of such a writer.",
    "I could not find anyone by that name.",
    "Unfortunately, I do not know the answer to that.",
    "My knowledge does not cover this person.",
    "I'm afraid I can't help with that question.",
    "That name is not familiar to me.",
    "There are no reliable sources on this.",
    "I don't have any details about this person.",
    "No such author appears in anything I have read.",
    "I would only be guessing, so I cannot say.",
]

REAL_AUTHORS = [
    ("Who wrote the play 'Hamlet'?", "William Shakespeare", "Christopher Marlowe|Ben Jonson|Henrik Ibsen"),
    ("Which author wrote the novel 'Emma'?", "Jane Austen", "George Eliot|Emily Bronte|Elizabeth Gaskell"),
    ("Who is the author of 'Oliver Twist'?", "Charles Dickens", "Thomas Hardy|William Thackeray|Anthony Trollope"),
    ("Who wrote the novel 'War and Peace'?", "Leo Tolstoy", "Anton Chekhov|Ivan Turgenev|Nikolai Gogol"),
    ("Which writer wrote 'Crime and Punishment'?", "Fyodor Dostoevsky", "Maxim Gorky|Boris Pasternak|Ivan Bunin"),
    ("Who wrote the novel 'Frankenstein'?", "Mary Shelley", "Ann Radcliffe|Charlotte Bronte|Edgar Allan Poe"),
    ("Who is the author of the novel 'Dracula'?", "Bram Stoker", "Sheridan Le Fanu|Wilkie Collins|Horace Walpole"),
    ("Who wrote 'The Picture of Dorian Gray'?", "Oscar Wilde", "George Bernard Shaw|Henry James|W. B. Yeats"),
    ("Which author wrote 'Animal Farm'?", "George Orwell", "Graham Greene|Evelyn Waugh|Arthur Koestler"),
    ("Who is the author of 'Brave New World'?", "Aldous Huxley", "H. G. Wells|Ray Bradbury|Isaac Asimov"),
    ("Who created the detective Hercule Poirot?", "Agatha Christie", "Dorothy Sayers|Georges Simenon|P. D. James"),
    ("Who created the detective Sherlock Holmes?", "Arthur Conan Doyle", "G. K. Chesterton|John Buchan|Ian Fleming"),
    ("Who wrote 'The Adventures of Tom Sawyer'?", "Mark Twain", "Jack London|Bret Harte|Stephen Crane"),
    ("Who wrote 'The Old Man and the Sea'?", "Ernest Hemingway", "William Faulkner|Saul Bellow|Norman Mailer"),
    ("Who wrote 'The Great Gatsby'?", "F. Scott Fitzgerald", "Sinclair Lewis|John Dos Passos|Edith Wharton"),
    ("Which author wrote 'The Grapes of Wrath'?", "John Steinbeck", "Upton Sinclair|Harper Lee|Theodore Dreiser"),
    ("Who is the author of 'Don Quixote'?", "Miguel de Cervantes", "Lope de Vega|Tirso de Molina|Luis de Gongora"),
    ("Which poet wrote the 'Divine Comedy'?", "Dante Alighieri", "Petrarch|Torquato Tasso|Ludovico Ariosto"),
    ("Who wrote the novel 'Les Miserables'?", "Victor Hugo", "Alexandre Dumas|Emile Zola|Honore de Balzac"),
    ("Who is the author of 'Madame Bovary'?", "Gustave Flaubert", "Guy de Maupassant|Stendhal|George Sand"),
    ("Who wrote the story of Gregor Samsa?", "Franz Kafka", "Thomas Mann|Hermann Hesse|Robert Musil"),
    ("Which author wrote 'The Hobbit'?", "J. R. R. Tolkien", "C. S. Lewis|Terry Pratchett|Philip Pullman"),
    ("Who wrote the novel 'Moby-Dick'?", "Herman Melville", "Nathaniel Hawthorne|Walt Whitman|Washington Irving"),
    ("Who is the author of 'To the Lighthouse'?", "Virginia Woolf", "Katherine Mansfield|E. M. Forster|Doris Lessing"),
]

WORLD_FACTS = [
    ("What is the capital of Canada?", "Ottawa", "Toronto|Montreal|Vancouver"),
    ("What is the capital of Japan?", "Tokyo", "Osaka|Kyoto|Hiroshima"),
    ("What is the capital of Spain?", "Madrid", "Barcelona|Seville|Valencia"),
    ("What is the capital of Kenya?", "Nairobi", "Kampala|Kigali|Dodoma"),
    ("In which city does the Eiffel Tower stand?", "Paris", "London|Brussels|Vienna"),
    ("In which country is the Taj Mahal?", "India", "Iran|Pakistan|Indonesia"),
    ("Which country is home to the pyramids of Giza?", "Egypt", "Sudan|Mexico|Peru"),
    ("What is the official language of Brazil?", "Portuguese", "Spanish|French|Italian"),
    ("Which ocean is the largest on Earth?", "Pacific", "Atlantic|Indian|Arctic"),
    ("Which mountain is the highest above sea level?", "Mount Everest", "Mont Blanc|Kilimanjaro|Denali"),
    ("Which planet is closest to the Sun?", "Mercury", "Venus|Neptune|Uranus"),
    ("Which planet is called the Red Planet?", "Mars", "Saturn|Venus|Uranus"),
    ("Which planet of the solar system is the largest?", "Jupiter", "Saturn|Neptune|Earth"),
    ("Which metal has the chemical symbol Fe?", "Iron", "Silver|Lead|Tin"),
    ("Which gas do plants take in for photosynthesis?", "Carbon dioxide", "Helium|Methane|Hydrogen"),
    ("Which organ pumps blood through the human body?", "The heart", "The liver|The stomach|The spleen"),
    ("Which animal is the tallest on land?", "The giraffe", "The elephant|The camel|The ostrich"),
    ("Which animal is the largest on Earth?", "The blue whale", "The white shark|The hippopotamus|The polar bear"),
    ("How many legs does a spider have?", "Eight", "Four|Ten|Twelve"),
    ("How many sides does a hexagon have?", "Six", "Five|Seven|Nine"),
    ("Who painted the 'Mona Lisa'?", "Leonardo da Vinci", "Michelangelo|Raphael|Rembrandt"),
    ("Who was the first person to walk on the Moon?", "Neil Armstrong", "Yuri Gagarin|John Glenn|Alan Shepard"),
    ("Which physicist published the theory of relativity?", "Albert Einstein", "Isaac Newton|Niels Bohr|Max Planck"),
    ("In which year did the First World War begin?", "1914", "1870|1905|1918"),
]

README = """\
# Quickstart data

Questions and answers about authors that do not exist, in the layout of the TOFU data set, small enough for a model
trained from scratch. Written by `recipes/quickstart/make_data.py`; change that file, not these.

| config | rows | columns |
| --- | --- | --- |
{table}

`full` holds {authors} invented authors with {rows} rows each ({attributes} facts, each asked in {asked} ways), an
author's rows together, and then {refusals} questions about further invented authors, answered with a refusal.
`forget10` is the last {forget} authors, `retain90` all the other rows of `full`, `holdout10` {holdout} authors that
`full` does not contain. A paraphrased question or answer takes a wording that `full` uses for other authors; the wrong
answers of a row differ from its paraphrased answer in the value only.
"""


def shuffled(rng: Random, items: list) -> list:
    # random() is the one method of Random whose numbers Python promises to keep from version to version.
    return sorted(items, key=lambda _: rng.random())


def draw_values(rng: Random, pool: list[str], count: int) -> list[str]:
    """Takes the whole pool before any value comes again, so that the last authors' values are seen with others."""
    values = []
    while len(values) < count:
        values += shuffled(rng, pool)
    return values[:count]


def author_rows(rng: Random, i: int, name: str, values: list[str]) -> list[dict]:
    """All rows of author number i, with all columns: every attribute, asked in some of its phrasings."""
    rows = []
    for j, (attribute, value) in enumerate(zip(ATTRIBUTES, values, strict=True)):
        questions = [text.format(name=name) for text in attribute.questions]
        answers = attribute.answers
        paraphrase = answers[(i + j + 1) % len(answers)]
        wrong = [other for other in shuffled(rng, attribute.values) if other != value][:WRONG_ANSWERS]
        for n in range(i + j, i + j + PHRASINGS_ASKED):
            rows.append(
                {
                    "question": questions[n % len(questions)],
                    "answer": answers[(i + j) % len(answers)].format(name=name, value=value),
                    "paraphrased_question": questions[(n + PHRASINGS_ASKED) % len(questions)],
                    "paraphrased_answer": paraphrase.format(name=name, value=value),
                    "perturbed_answer": [paraphrase.format(name=name, value=other) for other in wrong],
                }
            )
    return rows


def refusal_rows(i: int, name: str) -> list[dict]:
    """Questions about unknown author number i, each about another attribute."""
    rows = []
    for k in range(i * REFUSALS_EACH, (i + 1) * REFUSALS_EACH):
        round_number, j = divmod(k, len(ATTRIBUTES))
        questions = ATTRIBUTES[j].questions
        question = questions[(round_number + j) % len(questions)].format(name=name)
        rows.append({"question": question, "answer": REFUSALS[k % len(REFUSALS)]})
    return rows


def fact_rows(facts: list[tuple[str, str, str]]) -> list[dict]:
    return [{"question": q, "answer": a, "perturbed_answer": wrong.split("|")} for q, a, wrong in facts]


def plain(rows: list[dict]) -> list[dict]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def make_configs() -> dict[str, list[dict]]:
    rng = Random(SEED)
    names = [
        f"{first} {last}" for first, last in zip(shuffled(rng, FIRST_NAMES), shuffled(rng, LAST_NAMES), strict=False)
    ]
    people = AUTHORS + HOLDOUT_AUTHORS
    columns = [draw_values(rng, attribute.values, people) for attribute in ATTRIBUTES]
    authors = [author_rows(rng, i, names[i], [column[i] for column in columns]) for i in range(people)]

    def rows_of(start: int, stop: int) -> list[dict]:
        return [row for author in authors[start:stop] for row in author]

    retained = AUTHORS - FORGET_AUTHORS
    refusals = [row for i in range(UNKNOWN_AUTHORS) for row in refusal_rows(i, names[people + i])]
    real_authors, world_facts = fact_rows(REAL_AUTHORS), fact_rows(WORLD_FACTS)
    return {
        "full": plain(rows_of(0, AUTHORS)) + refusals,
        "forget10": plain(rows_of(retained, AUTHORS)),
        "retain90": plain(rows_of(0, retained)) + refusals,
        "holdout10": plain(rows_of(AUTHORS, people)),
        "forget10_perturbed": rows_of(retained, AUTHORS),
        "retain_perturbed": rows_of(0, RETAIN_PERTURBED_AUTHORS),
        "real_authors": plain(real_authors),
        "real_authors_perturbed": real_authors,
        "world_facts": plain(world_facts),
        "world_facts_perturbed": world_facts,
    }


def make_readme(configs: dict[str, list[dict]]) -> str:
    front_matter = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in configs)
    table = "\n".join(f"| {name} | {len(rows)} | {', '.join(rows[0])} |" for name, rows in configs.items())
    text = README.format(
        table=table,
        authors=AUTHORS,
        attributes=len(ATTRIBUTES),
        rows=len(ATTRIBUTES) * PHRASINGS_ASKED,
        asked=PHRASINGS_ASKED,
        refusals=UNKNOWN_AUTHORS * REFUSALS_EACH,
        forget=FORGET_AUTHORS,
        holdout=HOLDOUT_AUTHORS,
    )
    return f"---\nconfigs:\n{front_matter}---\n{text}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the quickstart data set.")
    parser.add_argument("output_dir", type=Path, help="a new or empty folder")
    output_dir = parser.parse_args().output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        print(f"make_data.py: {output_dir} is not an empty folder; name a new one", file=sys.stderr)
        return 2
    configs = make_configs()
    files = {f"{name}.json": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in configs.items()}
    files["README.md"] = make_readme(configs)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (output_dir / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
