import Glibc
import Platform

/// How long what is ready to run waits for a processor on this host: a thread sleeps 5 ms again and again, and looks how long each time took until it ran again
/// (as cyclictest of rt-tests does). A CPU quota, a busy neighbour and time stolen by a hypervisor show in it, also where the kernel keeps no pressure figures.
///
/// The whole time counts, not only what is late: being late by 0.3 ms instead of 0.1 is no trouble, and as a ratio it would look like some. A quota is out for tens
/// of milliseconds at a time, with nothing to be seen in between: the looks go on for longer than that, and the longest times count. Of these the second, as one
/// comes by chance on any host.
enum WakeupProbe {
    private static let sleeps = 20
    private static let sleepMs = 5.0
    /// No more sleeps after that, where each one takes much longer than it should.
    private static let limitMs = 200.0

    /// Milliseconds, 5 at least. It takes some 100 ms, nearly all of which are slept.
    static func look() -> Double {
        var times: [Double] = []
        let begin = MonotonicTime.now
        while times.count < sleeps, times.count < 2 || MonotonicTime.now.milliseconds(since: begin) < limitMs {
            let asleep = MonotonicTime.now
            usleep(UInt32(sleepMs * 1000))
            times.append(MonotonicTime.now.milliseconds(since: asleep))
        }
        return secondLongest(times)
    }

    static func secondLongest(_ times: [Double]) -> Double {
        let sorted = times.sorted(by: >)
        return sorted.dropFirst().first ?? sorted.first ?? 0
    }
}
