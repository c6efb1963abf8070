// What a check has found, in qemu-img check's terms.

export interface CheckResult {
  /** Clusters or entries that contradict others: using the image may lose data. */
  corruptions: number
  /** Clusters that count as used and are not: space is lost, and nothing else. */
  leaks: number
  corruptionsFixed: number
  leaksFixed: number
  /** Things that could not be looked at. */
  checkErrors: number
  /** Behind the last cluster that is used, in bytes. */
  imageEndOffset: number
  totalClusters: number
  allocatedClusters: number
  fragmentedClusters: number
  compressedClusters: number
  /** The first of them, as sentences. */
  readonly messages: string[]
}

const MOST_MESSAGES = 1000

export class Findings implements CheckResult {
  corruptions = 0
  leaks = 0
  corruptionsFixed = 0
  leaksFixed = 0
  checkErrors = 0
  imageEndOffset = 0
  totalClusters = 0
  allocatedClusters = 0
  fragmentedClusters = 0
  compressedClusters = 0
  readonly messages: string[] = []

  corruption(message: string) {
    this.corruptions++
    this.#say(`ERROR ${message}`)
  }

  leak(message: string) {
    this.leaks++
    this.#say(`Leaked ${message}`)
  }

  #say(message: string) {
    if (this.messages.length < MOST_MESSAGES) this.messages.push(message)
  }
}
