"""Generate the support-desk messages on which tests fine-tune and prune a real encoder.

One task, two distributions. A shop for household goods sorts messages by the department that
has to answer. In-distribution rows are what the web form collects: one or two terse, tidy
sentences. Target rows are what production brings: the same departments asked about in long,
chatty letters with greetings, stories, asides about matters already settled, mostly unfamiliar
wording and typing mistakes. The department is always that of the open request, never that of the
background around it.

A row depends on the distribution's name, the seed and its position alone, so fewer rows under
the same seed are a prefix of more rows. Train on a prefix and measure on the rest: no two rows
of one call share their text, ignoring case and everything that is not a letter or digit.

This module knows nothing about models. Add wording to the blocks below, one template a line;
`{name}` is replaced by a random phrase of `SLOTS[name]`.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Literal


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.strip().splitlines())


def _phrases(block: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in block.split(","))


LABELS: tuple[str, ...] = ("account", "advice", "billing", "delivery", "repair", "returns")

SLOTS: dict[str, tuple[str, ...]] = {
    "item": _phrases("""
        kettle, toaster, blender, vacuum cleaner, table lamp, electric fan, steam iron,
        coffee grinder, bread maker, heater, kitchen scale, mixer, air purifier, juicer,
        rice cooker, desk clock, hair dryer, sewing machine, food processor, humidifier
    """),
    "thing": _phrases("""
        espresso maker, air fryer, robot mop, waffle iron, slow cooker, milk frother,
        hedge trimmer, pressure washer, ice cream machine, electric blanket, popcorn
        popper, dehumidifier, soda maker, cordless drill, hand warmer, garment steamer,
        egg boiler, fondue set, pasta roller, window cleaner
    """),
    "part": _phrases("""
        lid, handle, power button, motor, cable, display, filter, hinge, switch, timer
    """),
    "when": _phrases("""
        today, yesterday, on Monday, on Tuesday, on Friday, last week, two days ago, last
        month, this morning, on the 3rd, on the 12th, on the 27th
    """),
    "ago": _phrases("""
        the other day, over the bank holiday, a fortnight back, just before our trip, some
        time in spring, right after payday, the weekend before last, ages ago, at the tail
        end of last month, on what must have been a Wednesday
    """),
    "amount": tuple(f"{pounds}.{pence}" for pounds in (9, 14, 19, 34, 59, 82) for pence in (50, 99)),
    "order": tuple(str(number) for number in range(40013, 49999, 37)),
    "kin": _phrases("""
        my sister, my husband, my gran, our neighbour, my flatmate, my eldest, my
        mother-in-law, my boss, a friend from choir, my partner, the lady next door, my
        nephew
    """),
    "place": _phrases("""
        the new flat, our allotment, the caravan, the office kitchen, the holiday cottage,
        the village hall, the shed, my studio, the canal boat, the spare room
    """),
    "occasion": _phrases("""
        a christening, the school fair, our anniversary, a housewarming, my retirement do,
        the street party, a baby shower, quiz night, exam season, half term
    """),
}

ID_REQUESTS: dict[str, tuple[str, ...]] = {
    "account": _lines("""
        I cannot log in.
        Please reset my password.
        Please change the email address on my profile.
        How do I delete my account?
        The confirmation code to sign in never arrives.
        My account has been locked since {when}.
        Please merge my two customer accounts.
        How do I update my phone number?
        Please remove me from the newsletter.
        I want to change my user name.
        I signed up {when} but my profile is empty.
        Please correct the spelling of my name in my profile.
        How do I add a second user to my account?
    """),
    "advice": _lines("""
        Which {item} is the quietest?
        Is the {item} suitable for a small kitchen?
        Does the {item} come with a spare {part}?
        What is the difference between the two {item} models?
        Is there a larger {item} in the range?
        When will the {item} be back in stock?
        Do you sell a {item} in white?
        How much power does the {item} use?
        Can you recommend a {item} as a gift?
        Which {part} fits the {item}?
        How heavy is the {item}?
        Is the {item} safe for children?
        What warranty comes with the {item}?
    """),
    "billing": _lines("""
        I was charged twice for order {order}.
        Please send an invoice for order {order}.
        The invoice shows {amount} too much.
        My card was declined {when}.
        The discount code was not applied to the {item}.
        Can I pay for the {item} in instalments?
        The refund of {amount} is not on my card yet.
        Please put our company name on the invoice.
        There is an unknown charge of {amount} on my statement.
        Why was tax added to the {item}?
        I paid {when} but the order still shows as unpaid.
        Can I pay order {order} by bank transfer?
        My gift card balance is wrong by {amount}.
    """),
    "delivery": _lines("""
        Where is order {order}?
        The {item} should have arrived {when}.
        The tracking page has not changed since {when}.
        Please deliver order {order} to another address.
        Can the {item} be delivered on a Saturday?
        The courier left no note {when}.
        The parcel is marked as delivered but I do not have it.
        When will the {item} be shipped?
        Half of order {order} is missing from the box.
        Do you ship the {item} abroad?
        Please leave the {item} with a neighbour.
        Can I collect order {order} from the depot?
        The {item} was sent to my old address.
    """),
    "repair": _lines("""
        The {item} does not switch on.
        The {part} of the {item} is broken.
        The {item} makes a loud noise.
        The {item} stopped working {when}.
        How do I replace the {part} of the {item}?
        The {item} overheats after ten minutes.
        The {item} shows an error on the display.
        Can you repair the {part} of my {item}?
        The {item} leaks near the {part}.
        The {part} is loose and the {item} shakes.
        Is the broken {part} covered by the warranty?
        Please book a technician for the {item}.
        The {item} turns itself off.
    """),
    "returns": _lines("""
        I want to send the {item} back.
        Please send a return label for order {order}.
        Can I exchange the {item} for a smaller one?
        How long do I have to return the {item}?
        The {item} is the wrong colour, please swap it.
        You sent a {item} I did not order, how do I return it?
        I changed my mind about the {item}.
        Has my returned {item} reached you?
        Can I return the {item} without the box?
        Who pays the postage if I return the {item}?
        Please exchange the broken {item} for a new one.
        I do not like the {item} and want my money back.
        I received two, where do I send the second {item}?
    """),
}

# The desk's records route these either way, so no classifier can be right about all of them.
SHARED_ID_REQUESTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("repair", "returns"): _lines("""
        The {item} arrived with a broken {part}.
        The {item} is faulty, please help.
    """),
    ("billing", "returns"): _lines("""
        Please refund the {item}.
        When do I get my {amount} back?
    """),
    ("account", "billing"): _lines("""
        Please change the address for order {order}.
        I cannot save my card for order {order}.
    """),
    ("advice", "repair"): _lines("""
        How do I clean the {part} of the {item}?
        Do you have a new {part} for the {item}?
    """),
    ("advice", "delivery"): _lines("""
        How long does it take to get a {item}?
        How large is the box of the {item}?
    """),
    ("account", "delivery"): _lines("""
        I have moved house, please update my address.
        I get no messages about order {order}.
    """),
}

ID_BACKGROUNDS: tuple[str, ...] = _lines("""
    I ordered a {item} {when}.
    This is about order {order}.
    I bought the {item} {when}.
    The {item} arrived {when}.
    I have paid {amount} for order {order}.
    The courier came {when}.
    I logged in {when}.
    The {item} was repaired {when}.
    I returned a {item} {when}.
    I have read the manual of the {item}.
    The {item} was a gift.
    I wrote to you {when}.
""")

TARGET_REQUESTS: dict[str, tuple[str, ...]] = {
    "account": _lines("""
        the site keeps telling me it has no idea who I am, whatever I type in
        somebody else seems to be getting into my page and changing my details, help
        I got married {ago} and everything you hold on me still has my maiden name
        could you wipe whatever you have stored about me, I am done with online shops
        it wants six digits off a phone I threw in the lake {ago}, so I am stuck outside
        every morning I get three promotional mails from you and nothing I click stops them
        I seem to exist twice in your system, once with each of my addresses
        after too many wrong guesses it shut me out and there is no way back in
        {kin} set everything up under their own email and I would like it under mine
        the secret question is about a pet I never had, so I never get past that page
        I would love {kin} to be able to use my membership with their own sign in
        the app throws me back to the welcome screen whenever I try to see my own page
    """),
    "advice": _lines("""
        would a {thing} even make sense for {place}, or am I being silly
        I am torn between the cheap {thing} and the posh one and cannot see why it costs double
        what would you get {kin} for {occasion} if they already own a {thing}
        before I part with any cash, will the {thing} cope with daily use
        do you reckon the {thing} would fit on a shelf barely two hands deep
        I keep hearing that a {thing} eats electricity, is yours any better
        is the {thing} you used to stock ever coming back, {kin} swears by it
        does anything in your range do what a {thing} does without the racket
        can someone with bad wrists lift the {thing}, honestly
        has the {thing} got the thing where it switches off on its own, the page does not say
        would bits from my old {thing} go onto the new version if I bought it
        I would need about four of the {thing} for {occasion}, do you have that many and which sort
    """),
    "billing": _lines("""
        the same sum went out of my bank a second time and nobody has explained it
        my accountant is after a proper piece of paper with the tax on it for the {thing}
        you lot promised me {amount} back {ago} and my balance has not moved
        the voucher {kin} gave me was swallowed at the checkout and I paid full whack
        the number at the bottom of your letter is not what we agreed for the {thing}
        could we split what I owe for the {thing} over a few months, things are tight
        it keeps refusing my plastic although there is plenty in there
        I got a stern reminder for something I settled {ago}
        there is a line from your shop for {amount} in my banking app and I bought nothing
        the paperwork must say the firm and not me, otherwise I never get reimbursed
        the {thing} was on offer in the window and yet I was asked for the normal price
        could {kin} cover it from their bank instead, and what reference should they quote
    """),
    "delivery": _lines("""
        I have been sitting by the window since dawn and no van has turned up
        the little map says the {thing} has been in the same town ever since {occasion}
        apparently somebody signed for it, but it was not me nor {kin}
        we have moved to {place} in the meantime, can the driver be told
        there were supposed to be three things in the carton and I count one
        is there any chance of it getting here before {occasion}
        could your man just pop the {thing} over the side gate if nobody opens
        {kin} lives on an island, will you send a {thing} all the way out there
        I would rather pick the {thing} up myself than miss the driver again
        it has been nine days now and I still have no {thing}, what is going on
        a card through the door says they tried, but I was in the whole time
        your mail said on its way {ago} and since then I have heard nothing at all
    """),
    "repair": _lines("""
        the {thing} just sits there dead, no light, no hum, nothing
        there is a smell of burning whenever {kin} uses the {thing}
        the {thing} has started dripping all over the worktop
        it rattles like a bag of spoons and then the {thing} gives up halfway through
        the little plastic bit at the back of the {thing} snapped clean off, can it be mended
        some code beginning with E keeps flashing on the {thing} and I cannot find it anywhere
        is there anybody near {place} who could have a look inside the {thing}
        ever since {occasion} the {thing} trips the fuse for the entire house
        the {thing} used to be brilliant and now it barely gets lukewarm
        could you post me a new seal for the {thing}, I am handy with a screwdriver
        how on earth do I get the jammed bit out of the {thing} without wrecking it
        the {thing} packed in {ago}, surely that should be under guarantee
    """),
    "returns": _lines("""
        it turns out {kin} already has a {thing}, so this one can go back to you
        the {thing} is far too big for {place}, could we trade it for the little one
        do I need the original wrapping if you take the {thing} off my hands again
        I would like out of this purchase, the {thing} is just not for me
        is it too late to hand the {thing} back, it was for {occasion}
        the {thing} came in lime green and I picked cream, can we do a swap
        I posted the {thing} to your warehouse {ago}, did it get there
        somebody put a {thing} in my box that I never asked for, what shall I do with it
        the sticker for the parcel back to you will not print, could you send one
        I do not want a mechanic, I want a fresh {thing} in place of this dud
        am I supposed to pay the post office myself for sending you the {thing} again
        {kin} gave me the {thing} and I would sooner have something else of the same value
    """),
}

GREETINGS: tuple[str, ...] = _lines("""
    Hiya,
    Hello there, hope you are all well.
    Hi team!
    Good evening,
    To whom it may concern,
    Hey folks,
    Morning!
    Hello, me again.
    Dear shop,
    Sorry to bother you.
    Right, where do I start.
    Hi, not sure this is the right place.
""")

STORIES: tuple[str, ...] = _lines("""
    We have had the builders in at {place} for weeks and I am typing this with dust in my hair.
    {kin} told me about your shop at {occasion} and I have been a fan ever since.
    It has been a mad month what with {occasion} and the dog being poorly.
    I am not great with computers so {kin} is helping me write this.
    Normally I would have rung, but I sat in the queue for half an hour and lost patience.
    I am writing from {place} where the signal is dreadful, so excuse my brevity, ha.
    We are getting ready for {occasion} and my head is all over the place.
    I have shopped with you since the days of the paper catalogue.
    {kin} says I worry too much, but I would rather ask.
    The weather has been awful, so I finally got round to my paperwork.
    I never usually complain, ask {kin}.
    You were so kind when I got in touch {ago} that I thought I would try again.
    Last time it was {kin} who sorted these things out, now it is my turn.
    I started this message {ago} and then the baby woke up.
    To cut a long story short, and it is a long one, it all began at {occasion}.
    I am on the bus to {place}, hence the spelling.
""")

ASIDES: tuple[str, ...] = _lines("""
    The {thing} from before Christmas came on time by the way, full marks to the driver.
    Paying was a doddle this time, so thanks for that.
    {kin} sent their {thing} back {ago} and that went smoothly.
    The new website is lovely and I got in first time.
    The man who fixed our {thing} {ago} was a gem.
    You were right about which {thing} to get, we adore it.
    I am not after my money back or anything.
    The {thing} itself works a treat, no worries there.
    I have my receipt somewhere, I think in {place}.
    No parcel drama for once, I should add.
    I did try the chat, but it only wanted to sell me a {thing}.
    {kin} keeps asking for my password so they can order a {thing}, but that is another story.
    The bill for the {thing} was fine in the end.
    I nearly bought a second {thing}, but never mind that now.
""")

LEADS: tuple[str, ...] = _lines("""
    So basically,
    Anyway,
    The thing is,
    What I wanted to say is:
    Here is my problem:
    Long story short,
    My question:
    Well,
    So here goes,
    Right then,
    Just wondering,
    Basically
""")

CLOSINGS: tuple[str, ...] = _lines("""
    Ta very much!
    Cheers and have a lovely weekend.
    Any help would be a godsend.
    Get back to me whenever, no rush.
    Please hurry, {occasion} is round the corner.
    Thanks a bunch, and greetings from {kin} too.
    I look forward to your swift reply.
    Let me know, ok?
    Bless you all.
    That is it from me, off to {place} now.
    Sorry for rambling on.
    Hope that makes sense!
""")

_SLANG: tuple[tuple[str, str], ...] = (
    ("please", "pls"),
    ("thanks", "thx"),
    ("because", "cos"),
    ("cannot", "cant"),
    ("do not", "dont"),
    ("I am", "im"),
    ("I have", "ive"),
    ("I would", "id"),
    ("you", "u"),
    ("going to", "gonna"),
    ("something", "smth"),
)

_SHARED_SHARE = 0.1
_FAMILIAR_SHARE = 0.35
_TYPO_SHARE = 0.06
_SLANG_SHARE = 0.3


def rows(name: Literal["id", "target"], num_rows: int, seed: int) -> list[dict[str, str]]:
    """Return distinct labelled messages of one distribution.

    Args:
        name: `id` for terse form entries, `target` for chatty letters.
        num_rows: Number of rows, labels drawn uniformly.
        seed: Rows of one seed are distinct; two seeds of one distribution may share a few.

    Returns:
        One dictionary per row with keys `text` and `label`, the label one of `LABELS`.
    """
    write_message = {"id": _form_entry, "target": _letter}[name]
    generator = random.Random(f"{name}-{seed}")
    seen: set[str] = set()
    found: list[dict[str, str]] = []
    while len(found) < num_rows:
        label = generator.choice(LABELS)
        text = write_message(label, generator)
        # Drawing the label anew would starve departments whose requests vary least.
        while normalized(text) in seen:
            text = write_message(label, generator)
        seen.add(normalized(text))
        found.append({"text": text, "label": label})
    return found


def normalized(text: str) -> str:
    """Return the text's lower-cased letters and digits, the form in which rows are distinct."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _form_entry(label: str, generator: random.Random) -> str:
    requests = ID_REQUESTS[label]
    if generator.random() < _SHARED_SHARE:
        requests = tuple(
            request for labels, shared in SHARED_ID_REQUESTS.items() if label in labels for request in shared
        )
    sentences = [_fill(generator.choice(requests), generator)]
    if generator.random() < 0.75:
        sentences.insert(generator.randrange(2), _fill(generator.choice(ID_BACKGROUNDS), generator))
    return " ".join(sentences)


def _letter(label: str, generator: random.Random) -> str:
    lead = generator.choice(LEADS)
    if generator.random() < _FAMILIAR_SHARE:
        request = generator.choice(ID_REQUESTS[label]).rstrip(".?")
        request = request if request.startswith("I ") else request[0].lower() + request[1:]
    else:
        request = generator.choice(TARGET_REQUESTS[label])
    ending = generator.choice((".", "...", "!!", "?", ""))
    body = [_fill(f"{lead} {request}", generator) + ending]
    stories = generator.sample(STORIES, generator.choice((1, 1, 2)))
    body[:0] = [_fill(story, generator) for story in stories]
    if generator.random() < 0.6:
        aside = _fill(generator.choice(ASIDES), generator)
        body.insert(generator.randrange(len(body) + 1), aside)
    if generator.random() < 0.8:
        body.insert(0, generator.choice(GREETINGS))
    if generator.random() < 0.8:
        body.append(_fill(generator.choice(CLOSINGS), generator))
    return _typed_in_haste(" ".join(body), generator)


def _fill(template: str, generator: random.Random) -> str:
    text = re.sub(r"\{(\w+)\}", lambda slot: generator.choice(SLOTS[slot[1]]), template)
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return text[0].upper() + text[1:]


def _typed_in_haste(text: str, generator: random.Random) -> str:
    for formal, slang in _SLANG:
        if generator.random() < _SLANG_SHARE:
            text = re.sub(rf"\b{formal}\b", slang, text)
    words = [
        _mistyped(word, generator) if generator.random() < _TYPO_SHARE else word for word in text.split()
    ]
    text = " ".join(words)
    return text.lower() if generator.random() < 0.4 else text


def _mistyped(word: str, generator: random.Random) -> str:
    if len(word) < 4:
        return word
    at = generator.randrange(1, len(word) - 1)
    return generator.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
