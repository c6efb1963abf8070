// Sizes, spans and times as people read them.

import { el } from './dom.mjs'

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']

/** 1536 is "1.5 KiB", as `stillpoint` has it. */
export function size(bytes) {
  const power = bytes < 1024 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), UNITS.length - 1)
  const value = bytes / 1024 ** power
  const text = power === 0 ? String(value) : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)
  return `${text.replace(/\.0+$|(\.\d*?)0+$/, '$1')} ${UNITS[power]}`
}

const STEPS = [
  ['s', 60],
  ['min', 60],
  ['h', 24],
  ['d', Infinity],
]

/** Two hours and more are told in hours, and so on: "90 min", "2 h". */
export function span(ms) {
  let value = Math.max(0, Math.round(ms / 1000))
  for (const [unit, next] of STEPS) {
    if (value < next * (unit === 'd' ? 1 : 2)) return `${value} ${unit}`
    value = Math.round(value / next)
  }
  return ''
}

const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' })
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' })
const year = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' })
const exactly = new Intl.DateTimeFormat('en-GB', { dateStyle: 'full', timeStyle: 'long' })

export function shortTime(date) {
  const now = new Date()
  if (date.toDateString() === now.toDateString()) return clock.format(date)
  return date.getFullYear() === now.getFullYear() ? `${day.format(date)} ${clock.format(date)}` : year.format(date)
}

export const shortDay = date => day.format(date)
export const shortClock = date => clock.format(date)

export const ago = date => {
  const ms = Date.now() - date.getTime()
  return ms >= 0 ? (ms < 5000 ? 'just now' : `${span(ms)} ago`) : `in ${span(-ms)}`
}

/** With how long ago that is, which the page keeps true (main.mjs). */
export function time(text, { relative = true } = {}) {
  const date = new Date(text)
  const attributes = { datetime: text, title: exactly.format(date) }
  return el('time', attributes, shortTime(date), relative && el('span', { class: 'ago' }, ` ${ago(date)}`))
}

export function refreshAgo(root) {
  for (const one of root.querySelectorAll('time > .ago')) one.textContent = ` ${ago(new Date(one.parentNode.dateTime))}`
}

export const plural = (count, one, more = `${one}s`) => `${count.toLocaleString('en-GB')} ${count === 1 ? one : more}`

/** Whole percents: 0 only where there is nothing, 100 only where it is all. */
export const share = (part, whole) =>
  whole <= 0 || part <= 0 ? 0 : part >= whole ? 100 : Math.min(99, Math.max(1, Math.round((part / whole) * 100)))
