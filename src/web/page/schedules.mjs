// Schedules: when they begin next, how the last runs went, and how old the newest good backups are.

import { el, svg, table } from './dom.mjs'
import { plural, span, time } from './format.mjs'

const WORDS = {
  done: 'done',
  warning: 'done, with a warning',
  partly: 'failed in part',
  failed: 'failed',
  interrupted: 'interrupted',
  missed: 'missed',
  skipped: 'skipped',
}
const GOOD = new Set(['done'])
const BAD = new Set(['failed', 'partly'])

const classOf = outcome => (GOOD.has(outcome) ? 'good' : BAD.has(outcome) ? 'bad' : 'so-so')

/** The last runs, oldest first: full where it went well, hollow where it did not, which is a shape and not a colour alone. */
function dots(runs) {
  const counts = new Map()
  for (const { outcome } of runs) counts.set(outcome, (counts.get(outcome) ?? 0) + 1)
  const words = [...counts].map(([outcome, count]) => `${count} ${WORDS[outcome] ?? outcome}`).join(', ')
  return svg(
    'svg',
    {
      class: 'runs',
      viewBox: `0 0 ${runs.length * 10} 12`,
      width: runs.length * 10,
      height: 12,
      role: 'img',
      'aria-label': `The last ${plural(runs.length, 'run')}: ${words}`,
    },
    runs.map(({ outcome, begun }, index) =>
      svg(
        'rect',
        {
          x: index * 10 + 1,
          y: BAD.has(outcome) ? 1 : 3,
          width: 7,
          height: BAD.has(outcome) ? 10 : 6,
          rx: 1,
          class: classOf(outcome),
        },
        svg('title', {}, `${new Date(begun).toLocaleString('en-GB')}: ${WORDS[outcome] ?? outcome}`),
      ),
    ),
  )
}

function lastRun({ running, runs }) {
  if (running) return [el('strong', { class: 'active' }, 'runs'), ' since ', time(running.begun)]
  const last = runs.at(-1)
  if (!last) return el('span', { class: 'quiet' }, 'never ran')
  return [
    el('span', { class: classOf(last.outcome) }, WORDS[last.outcome] ?? last.outcome),
    ' ',
    time(last.ended ?? last.begun),
    last.outcome !== 'done' && last.reason !== undefined && el('span', { class: 'reason' }, last.reason),
  ]
}

const goodOf = ({ machines, good, 'stale-after': staleAfter }) =>
  el(
    'ul',
    { class: 'plain' },
    machines.map(machine => {
      const found = good.find(one => one.machine === machine)
      const isStale = staleAfter !== undefined && (!found || Date.now() - Date.parse(found.time) > staleAfter * 1000)
      return el(
        'li',
        {},
        el('span', { class: 'name' }, machine),
        ' ',
        found ? time(found.time) : el('span', { class: 'quiet' }, 'none yet'),
        isStale && el('strong', { class: 'bad' }, ' too old'),
      )
    }),
  )

export function schedules({ schedules, more }) {
  if (schedules.length === 0) return el('p', { class: 'none' }, 'None: backups are made when somebody asks for them.')
  return [
    table({
      caption: 'Schedules, their last runs and their next',
      stacks: true,
      columns: [
        {
          title: 'Schedule',
          className: 'details',
          of: ({ name, mode, repository, at, 'stale-after': staleAfter }) => [
            el('span', { class: 'name' }, name),
            el(
              'span',
              { class: 'quiet block' },
              mode === 'push' ? `push to ${repository}` : 'pull',
              at.length > 0 && ` · ${at.join(', ')}`,
              staleAfter !== undefined && ` · stale after ${span(staleAfter * 1000)}`,
            ),
          ],
        },
        { title: 'Last run', className: 'details', of: lastRun },
        { title: 'Before', of: ({ runs }) => runs.length > 0 && dots(runs) },
        { title: 'Next', of: ({ next }) => (next.length > 0 ? time(next[0]) : el('span', { class: 'quiet' }, 'when asked')) },
        { title: 'Newest good backup', className: 'details', of: goodOf },
      ],
      rows: schedules,
    }),
    more.schedules > 0
      ? el('p', { class: 'quiet' }, `and ${plural(more.schedules, 'schedule')} more, which stillpoint schedule list shows`)
      : [],
  ]
}
