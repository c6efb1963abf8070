// Whether this Node is one that everything runs on.

import type { Examination } from './finding.ts'

const LEAST = 24

export const nodeVersion: Examination = {
  name: 'node',
  about: 'Node.js',
  async examine() {
    const found = `${process.version} for ${process.platform}-${process.arch} (${process.execPath})`
    if (Number(process.versions.node.split('.')[0]) >= LEAST) return [{ health: 'good', found }]
    return [
      {
        health: 'bad',
        found,
        costs: `Node ${LEAST} is the least that is tested; backups may fail in ways that nobody has seen`,
        mend: 'npm ci (in the folder of stillpoint: it brings its own Node), then start it by bin/stillpoint',
      },
    ]
  },
}
