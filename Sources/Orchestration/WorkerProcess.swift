import Foundation
import Glibc
import Platform
import Replication

/// A worker from its parent's side: the process, its message socket, its statistics.
final class WorkerProcess: @unchecked Sendable {
    private let process: Subprocess
    private let channel: WorkerChannel
    let statistics: SharedStatistics
    private let ended = Guarded(false)
    /// QEMU's connection of the pass under way, in case the worker dies: somebody has to read it to its end.
    private let pass = Guarded<Int32>(-1)

    /// Starts this executable again as a worker. `onEvent` and `onEnd` are called on a thread of the worker's own, in order;
    /// `onEnd` exactly once, as the last.
    @_optimize(none)  // Swift 6.0's optimizer crashes on it: "All discovered blocks must be live"
    init(name: String, start: WorkerCommand, descriptors: [Int32] = [], onEvent: @escaping @Sendable (WorkerEvent) -> Void,
         onEnd: @escaping @Sendable (String) -> Void) throws {
        let pair = try UnixSocket.messagePair()
        let shared = try memoryFile("shadow-virt-statistics", bytes: SharedStatistics.bytes)
        statistics = try SharedStatistics(shared.raw)
        process = try Subprocess.spawn("/proc/self/exe", arguments: ["worker"], descriptors: [pair.theirs.raw, shared.raw] + descriptors)
        channel = WorkerChannel(pair.takeOurs())
        try channel.send(start)
        let thread = Thread { [process, channel, ended, pass] in
            while let (event, fd) = (try? channel.receive(WorkerEvent.self)) ?? nil {
                switch event.kind {
                case .passConnected: pass.keep(fd)
                case .passCommitted, .passFailed: pass.keep(-1)
                default: if fd >= 0 { close(fd) }
                }
                onEvent(event)
            }
            // The socket closes with the process, or shortly before; a worker that closed it and lives is of no use.
            var status = process.wait(until: MonotonicTime.now.adding(milliseconds: 2000))
            if status == nil {
                process.signal(SIGKILL)
                status = process.wait(until: MonotonicTime.now.adding(milliseconds: 10_000))
            }
            pass.readToEnd()
            ended.change { $0 = true }
            onEnd(status ?? "still running")
        }
        thread.name = "worker \(name)"
        thread.start()
    }

    var pid: Int32 { process.pid }
    var hasEnded: Bool { ended.read { $0 } }

    /// Readable once the process has ended, before `onEnd` says so.
    var endedDescriptor: Int32 { process.endedDescriptor }

    /// Orders something; a worker that is gone is reported through `onEnd`, not here.
    func order(_ command: WorkerCommand, descriptor: Int32 = -1) {
        do {
            try channel.send(command, descriptor: descriptor)
        } catch {
            Log.debug("Worker \(process.pid) did not take \(command.verb.rawValue): \(error)")
        }
    }

    /// Asks it to end, and ends it after that time. Returns once it is gone.
    func stop(milliseconds: Double = 2000) {
        order(WorkerCommand(.stop))
        if ended.wait(until: MonotonicTime.now.adding(milliseconds: milliseconds), { $0 ? true : nil }) == nil {
            process.signal(SIGKILL)
            _ = ended.wait(until: MonotonicTime.now.adding(milliseconds: 5000)) { $0 ? true : nil }
        }
    }

    func kill() { process.signal(SIGKILL) }
}

extension Guarded<Int32> {
    /// Holds this descriptor instead of the one before.
    fileprivate func keep(_ fd: Int32) {
        let old = change { current in
            defer { current = fd }
            return current
        }
        if old >= 0 { close(old) }
    }

    /// On a thread of its own, with the descriptor that was held.
    fileprivate func readToEnd() {
        let fd = change { current in
            defer { current = -1 }
            return current
        }
        guard fd >= 0 else { return }
        startThread("pass-rest") {
            readPassToEnd(fd)
            close(fd)
        }
    }
}
