// The page: asks for the document, hears what is under way, and shows both. It asks again when the daemon says that something is new.

import { el, show } from './dom.mjs'
import { plural, refreshAgo, shortTime } from './format.mjs'
import { machines } from './machines.mjs'
import { underWay } from './now.mjs'
import { repositories } from './repositories.mjs'
import { schedules } from './schedules.mjs'

const EVERY_MS = 60_000
const AGAIN_MS = 5000
const REDRAWN_MS = 300_000
/** So that what comes in bursts is asked for once. */
const SETTLE_MS = 300

const byId = id => document.getElementById(id)
const bodyOf = id => byId(id).querySelector('.body')

const showTasks = underWay(bodyOf('now'))
let generation
let asked
let answered

function showDocument(told) {
  const { daemon, concerns, more } = told
  byId('host').textContent = daemon.host
  document.title = `${concerns.some(({ level }) => level === 'problem') ? '(!) ' : ''}Stillpoint ${daemon.host}`
  const problems = concerns.filter(({ level }) => level === 'problem').length
  const notices = concerns.length - problems
  const state = [problems > 0 && plural(problems, 'problem'), notices > 0 && plural(notices, 'notice')].filter(Boolean).join(', ')
  byId('state').textContent = state === '' ? 'All is well' : state
  byId('state').className = problems > 0 ? 'bad' : notices > 0 ? 'so-so' : 'good'
  byId('concerns').hidden = concerns.length === 0
  show(bodyOf('concerns'), { concerns, more: more.concerns }, list)
  // A timeline ends now, and so it is drawn again now and then.
  const about = Math.floor(Date.now() / REDRAWN_MS)
  show(bodyOf('machines'), { machines: told.machines, repositories: told.repositories, more, about }, machines)
  show(bodyOf('schedules'), { schedules: told.schedules, more }, schedules)
  show(bodyOf('repositories'), { repositories: told.repositories }, repositories)
  showTasks(told.live)
  byId('about').textContent =
    `stillpoint ${daemon.version}, since ${shortTime(new Date(daemon.started))}${daemon.config === undefined ? '' : `, ${daemon.config}`}`
}

const list = ({ concerns, more }) => [
  el(
    'ul',
    { class: 'concerns' },
    concerns.map(({ level, about, text }) =>
      el(
        'li',
        { class: level },
        el('span', { class: 'level' }, level === 'problem' ? 'Problem' : 'Notice'),
        ' ',
        el('strong', {}, about),
        ' ',
        text,
      ),
    ),
  ),
  more > 0 ? el('p', { class: 'quiet' }, `and ${more} more`) : [],
]

function lost(why) {
  const since = answered === undefined ? '' : ` What is shown is of ${shortTime(answered)}.`
  byId('lost').textContent = `No answer from the daemon (${why}).${since} Asks again every few seconds.`
  byId('lost').hidden = false
  document.body.classList.add('stale')
  byId('state').textContent = 'Not known'
  byId('state').className = 'bad'
}

/** One at a time; `asked` is when the next is due. */
async function ask() {
  clearTimeout(asked)
  asked = setTimeout(() => void ask(), EVERY_MS)
  try {
    const response = await fetch('status.json', { signal: AbortSignal.timeout(20_000) })
    if (!response.ok) throw new Error((await response.text()).slice(0, 200))
    const told = await response.json()
    generation = told.live.generation
    answered = new Date()
    byId('lost').hidden = true
    document.body.classList.remove('stale')
    showDocument(told)
    if (source?.readyState === EventSource.CLOSED) hear()
  } catch (error) {
    lost(error.message)
    clearTimeout(asked)
    asked = setTimeout(() => void ask(), AGAIN_MS)
  }
}

let source

function hear() {
  source?.close()
  source = new EventSource('events')
  source.addEventListener('live', ({ data }) => {
    const live = JSON.parse(data)
    byId('link').textContent = 'live'
    showTasks(live)
    if (live.generation === generation) return
    generation = live.generation
    clearTimeout(asked)
    asked = setTimeout(() => void ask(), SETTLE_MS)
  })
  source.addEventListener('error', () => {
    byId('link').textContent = 'not live'
    clearTimeout(asked)
    asked = setTimeout(() => void ask(), SETTLE_MS)
  })
}

await ask()
hear()
setInterval(() => refreshAgo(document), 10_000)
// A page that nobody sees needs no news, and one that is seen again wants them at once.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) return source.close()
  hear()
  return ask()
})
