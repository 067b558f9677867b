import Glibc
import Platform

/// How long what is ready to run waits for a processor on this host: a thread sleeps a few milliseconds again and again, and looks how late it is awake (as
/// cyclictest of rt-tests does). A CPU quota, a busy neighbour and time stolen by a hypervisor show in it, also where the kernel keeps no pressure figures.
///
/// A quota is out for tens of milliseconds at a time, with nothing to be seen in between: the looks go on for longer than that, and the longest waits count.
/// Of these the second, as one long wait comes by chance on any host.
enum WakeupProbe {
    private static let sleeps = 20
    private static let sleepMs = 5.0
    /// No more sleeps after that, where each one takes much longer than it should.
    private static let limitMs = 200.0

    /// Milliseconds. It takes some 100 ms, nearly all of which are slept.
    static func look() -> Double {
        var late: [Double] = []
        let begin = MonotonicTime.now
        while late.count < sleeps, late.count < 2 || MonotonicTime.now.milliseconds(since: begin) < limitMs {
            let asleep = MonotonicTime.now
            usleep(UInt32(sleepMs * 1000))
            late.append(max(0, MonotonicTime.now.milliseconds(since: asleep) - sleepMs))
        }
        return secondLongest(late)
    }

    static func secondLongest(_ waits: [Double]) -> Double {
        let sorted = waits.sorted(by: >)
        return sorted.dropFirst().first ?? sorted.first ?? 0
    }
}
