'use strict';
// The browser of sampled replies. What the page holds is in #data: a list of
// runs {name, groups}; a group is {step, uid, question, answer, rows}; a row is a
// list of its text, reward, advantage, whether it was learned from, its tokens,
// whether it was truncated, the characters of each token, and their
// log-probabilities.
//
// Everything is shown by textContent: a reply is text, whatever it holds.

const PER_PAGE = 10;
// A token's colour by its probability: the class of the first bound above it.
const SHADES = [
  [0.01, 'p5'], [0.1, 'p4'], [0.3, 'p3'], [0.6, 'p2'], [0.9, 'p1'],
];

const data = JSON.parse(document.getElementById('data').textContent);
const form = document.getElementById('filters');
const field = name => form.elements.namedItem(name);
let page = 0;

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function fill(select, values) {
  select.replaceChildren(...values.map(([value, text]) => {
    const option = make('option', '', text);
    option.value = value;
    return option;
  }));
}

function listSteps() {
  const steps = [...new Set(data[field('run').value].groups.map(g => g.step))];
  fill(field('step'), [['', 'all'], ...steps.map(step => [step, step])]);
}

// Returns a function of a number: whether it is between two fields, of which an
// empty one bounds nothing.
function between(least, most) {
  const [low, high] = [least, most].map(name => field(name).valueAsNumber);
  return x => (isNaN(low) || x >= low) && (isNaN(high) || x <= high);
}

// Returns a function of a group: whether it is of the question asked for, which
// is #NUMBER or a part of its text.
function fitsQuestion() {
  const asked = field('question').value.toLowerCase();
  return /^#\d+$/.test(asked)
    ? group => `#${group.uid}` === asked
    : group => group.question.toLowerCase().includes(asked);
}

// Returns the groups to show, each with the rows that were asked for.
function find() {
  const step = field('step').value;
  const reply = field('reply').value.toLowerCase();
  const rows = field('rows').value;
  const isAsked = fitsQuestion();
  const fitsReward = between('min_reward', 'max_reward');
  const fitsLength = between('min_length', 'max_length');
  const fits = ([text, reward, , kept, length]) =>
    text.toLowerCase().includes(reply) && fitsReward(reward) &&
    fitsLength(length) && (rows === 'all' || kept === (rows === 'kept'));
  return data[field('run').value].groups
    .filter(group => (!step || String(group.step) === step) && isAsked(group))
    .map(group => ({group, found: group.rows.filter(fits)}))
    .filter(({found}) => found.length);
}

// Returns the text of a row, a span a token. A character that several tokens
// make is of the last of them.
function showText([text, , , , , , widths, logprobs]) {
  const element = make('p', 'text', '');
  if (!widths || !field('coloured').checked) {
    element.textContent = text;
    return element;
  }
  const characters = Array.from(text);
  let begin = 0;
  widths.forEach((width, i) => {
    const piece = characters.slice(begin, begin + width).join('');
    begin += width;
    const probability = Math.exp(logprobs[i]);
    const shade = SHADES.find(([bound]) => probability < bound);
    const span = make('span', shade ? shade[1] : '', piece);
    span.title = `log-probability ${logprobs[i]}, ` +
      `probability ${probability.toPrecision(2)}`;
    element.append(span);
  });
  return element;
}

function showRow(row, isFound) {
  const [, reward, advantage, kept, length, truncated] = row;
  const element = make('article', 'row', '');
  element.classList.toggle('filtered', !kept);
  element.classList.toggle('other', !isFound);
  const facts = make('p', 'facts', '');
  const sign = advantage > 0 ? '+' : '';
  facts.append(
    make('strong', '', `reward ${reward}`),
    make('span', '', `advantage ${sign}${advantage}`),
    make('span', '', `${length} tokens${truncated ? ', truncated' : ''}`),
    make('span', '', kept ? 'learned from' : 'filtered out'),
  );
  element.append(facts, showText(row));
  return element;
}

function showGroup({group, found}) {
  const element = make('article', 'group', '');
  const head = make('h3', '', `step ${group.step}, answer ${group.answer}`);
  const button = make('button', '', `#${group.uid} at all steps`);
  button.type = 'button';
  button.addEventListener('click', () => {
    field('step').value = '';
    field('question').value = `#${group.uid}`;
    update();
  });
  head.append(button);
  const rows = make('div', 'rows', '');
  rows.append(...group.rows.map(row => showRow(row, found.includes(row))));
  element.append(head, make('p', 'question', group.question), rows);
  return element;
}

function show() {
  const groups = find();
  const last = Math.max(0, Math.ceil(groups.length / PER_PAGE) - 1);
  page = Math.min(page, last);
  const numRows = groups.reduce((sum, {found}) => sum + found.length, 0);
  const all = data[field('run').value].groups;
  const ofRows = all.reduce((sum, {rows}) => sum + rows.length, 0);
  document.getElementById('count').textContent =
    `${groups.length} of ${all.length} groups, ${numRows} of ${ofRows} ` +
    `replies; page ${page + 1} of ${last + 1}`;
  document.getElementById('previous').disabled = page === 0;
  document.getElementById('next').disabled = page === last;
  document.getElementById('groups').replaceChildren(
    ...groups.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(showGroup));
}

function update() {
  page = 0;
  show();
}

function showLegend() {
  const shades = SHADES.map(([bound, name]) =>
    make('span', name, `below ${bound}`));
  document.getElementById('legend').append(
    'probability of a token when it was drawn: ', ...shades,
    'above: white; \u00b7 is a token without a character, as the one that ends ' +
    'a reply. Pale replies are not among those asked for.');
}

form.addEventListener('input', event => {
  if (event.target === field('run')) listSteps();
  update();
});
document.getElementById('clear').addEventListener('click', () => {
  form.reset();
  listSteps();
  update();
});
form.addEventListener('submit', event => event.preventDefault());
for (const [id, change] of [['previous', -1], ['next', 1]]) {
  document.getElementById(id).addEventListener('click', () => {
    page += change;
    show();
  });
}
fill(field('run'), data.map(({name}, i) => [i, name]));
listSteps();
showLegend();
show();
