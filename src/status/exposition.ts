// Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/): families of samples, each with its help.

import type { Histogram } from '../nbd-server/traffic.ts'

export type Labels = Readonly<Record<string, string>>
export type Sample = readonly [labels: Labels, value: number]

const escaped = (text: string) => text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')
const quoted = (text: string) => `"${escaped(text).replaceAll('"', '\\"')}"`

const labelsText = (labels: Labels) => {
  const parts = Object.entries(labels).map(([name, value]) => `${name}=${quoted(value)}`)
  return parts.length > 0 ? `{${parts.join(',')}}` : ''
}

const number = (value: number) => (value === Infinity ? '+Inf' : value === -Infinity ? '-Inf' : String(value))

export class Exposition {
  readonly #lines: string[] = []

  /** What goes up and down. */
  gauge(name: string, help: string, samples: readonly Sample[] | number) {
    this.#family('gauge', name, help, samples)
  }

  /** What only goes up, from when the daemon was started on; its name ends in _total. */
  counter(name: string, help: string, samples: readonly Sample[] | number) {
    this.#family('counter', name, help, samples)
  }

  /** How often something took how long: buckets by their upper ends, the last of them infinite. */
  histogram(name: string, help: string, samples: readonly (readonly [Labels, Histogram])[]) {
    if (samples.length === 0) return
    this.#lines.push(`# HELP ${name} ${escaped(help)}`, `# TYPE ${name} histogram`)
    for (const [labels, { buckets, sum }] of samples) {
      for (const [end, count] of buckets) this.#lines.push(`${name}_bucket${labelsText({ ...labels, le: number(end) })} ${count}`)
      this.#lines.push(
        `${name}_sum${labelsText(labels)} ${number(sum)}`,
        `${name}_count${labelsText(labels)} ${buckets.at(-1)![1]}`,
      )
    }
  }

  /** A family of which there is nothing is not told. */
  #family(type: string, name: string, help: string, samples: readonly Sample[] | number) {
    const all: readonly Sample[] = typeof samples === 'number' ? [[{}, samples]] : samples
    if (all.length === 0) return
    this.#lines.push(`# HELP ${name} ${escaped(help)}`, `# TYPE ${name} ${type}`)
    for (const [labels, value] of all) this.#lines.push(`${name}${labelsText(labels)} ${number(value)}`)
  }

  get text() {
    return `${this.#lines.join('\n')}\n`
  }
}
