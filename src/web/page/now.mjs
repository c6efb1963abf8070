// What is under way: sessions and jobs with how far they are, how fast, and how much longer. Rows stay where they are while their numbers change.

import { el } from './dom.mjs'
import { plural, share, shortTime, size, span } from './format.mjs'

const KINDS = {
  push: 'Push',
  pull: 'Pull session',
  backup: 'Backup job',
  mirror: 'Copy',
  stream: 'Stream',
  commit: 'Commit',
  create: 'Create',
}

const BAD = new Set(['broken', 'aborting'])

const titleOf = ({ kind, what, name, to }) => [
  el('span', { class: 'kind' }, KINDS[kind] ?? kind),
  ' ',
  el('strong', {}, kind === 'pull' ? name : (what ?? name)),
  kind === 'pull' && [el('span', { class: 'quiet' }, ' of '), what],
  to !== undefined && [el('span', { class: 'quiet' }, ' to '), to],
]

/** In words, for all who do not see the bar. */
function wordsOf(task) {
  const { kind, status, done = 0, total = 0, rate, since, expires, 'seconds-left': left } = task
  if (kind === 'pull') {
    const until = expires === undefined ? undefined : `ends at ${shortTime(new Date(expires))} if nobody ends it`
    return [status, since && `of ${shortTime(new Date(since))}`, until].filter(Boolean).join(' · ')
  }
  return [
    status === 'running' ? undefined : status,
    total > 0 ? `${share(done, total)} % · ${size(done)} of ${size(total)}` : undefined,
    rate !== undefined && rate > 0 ? `${size(rate)}/s` : undefined,
    left !== undefined ? `${span(left * 1000)} left` : undefined,
  ]
    .filter(Boolean)
    .join(' · ')
}

function row(task) {
  const title = el('p', { class: 'title' }, titleOf(task))
  const bar = el('progress', { max: '1', 'aria-label': `${KINDS[task.kind] ?? task.kind} ${task.what ?? task.name}` })
  const words = el('p', { class: 'words' })
  const problem = el('p', { class: 'problem', hidden: true })
  const item = el('li', {}, title, bar, words, problem)
  const update = next => {
    const { done = 0, total = 0, status, problem: why } = next
    bar.hidden = total <= 0
    bar.value = total > 0 ? done / total : 0
    words.textContent = wordsOf(next)
    item.classList.toggle('bad', BAD.has(status) || why !== undefined)
    problem.hidden = why === undefined
    problem.textContent = why === undefined ? '' : `Problem: ${why}`
  }
  return { item, update }
}

/** Shows them in `body`, and again each time it is called with newer ones. */
export function underWay(body) {
  const rows = new Map()
  const list = el('ul', { class: 'tasks' })
  const none = el('p', { class: 'none' }, 'Nothing: no backup runs, and nobody reads one.')
  const rest = el('p', { class: 'quiet' })
  const scratch = el('p', { class: 'quiet' })
  body.replaceChildren(none, list, rest, scratch)
  return ({ tasks, more, scratch: { used, limit }, clients }) => {
    const keys = new Set(tasks.map(({ kind, name }) => `${kind} ${name}`))
    for (const [key, { item }] of rows) {
      if (keys.has(key)) continue
      item.remove()
      rows.delete(key)
    }
    for (const task of tasks) {
      const key = `${task.kind} ${task.name}`
      if (!rows.has(key)) {
        rows.set(key, row(task))
        list.append(rows.get(key).item)
      }
      rows.get(key).update(task)
    }
    list.hidden = tasks.length === 0
    none.hidden = tasks.length > 0
    rest.hidden = more === 0
    rest.textContent = `and ${more} more`
    scratch.textContent = [
      plural(clients, 'NBD client'),
      `scratch space ${used > 0 ? `${size(used)} of ${size(limit)} used` : `unused, ${size(limit)} at most`}`,
    ].join(' · ')
  }
}
