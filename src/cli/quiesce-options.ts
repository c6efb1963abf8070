// The options --quiesce and --no-quiesce, of the verbs that make an instant of a machine.

import { Option } from 'commander'

export const quiesceOptions = [
  new Option('--quiesce', 'freeze the guest for the instant, or do nothing (default: as its configuration says)'),
  new Option('--no-quiesce', 'do not freeze the guest: what is made is as after a power cut'),
]
