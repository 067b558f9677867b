import Foundation
import Glibc
import Platform

/// The process that `shadow-virt worker` is. Started by the service only, with its message socket as descriptor 3.
public enum WorkerMain {
    public static func run(_ arguments: [String]) -> Int32 {
        signal(SIGPIPE, SIG_IGN)
        var info = stat()
        guard arguments.isEmpty, fstat(WorkerChannel.workerDescriptor, &info) == 0, info.st_mode & S_IFMT == S_IFSOCK else {
            Log.error("`shadow-virt worker` is started by the service, not by hand")
            return 64
        }
        let parent = WorkerChannel(Descriptor(owning: WorkerChannel.workerDescriptor))
        do {
            guard let (command, _) = try parent.receive(WorkerCommand.self, until: MonotonicTime.now.adding(milliseconds: 10_000)) else {
                return 0
            }
            // Whatever the service's libraries left open without O_CLOEXEC.
            closeDescriptors(from: command.shadow.map { ShadowWorker.firstBlockDescriptor + Int32($0.sharedBlocks.count) } ?? WorkerChannel.statisticsDescriptor + 1)
            let statistics = try SharedStatistics(WorkerChannel.statisticsDescriptor)
            do {
                switch command.verb {
                case .startSource:
                    guard let options = command.source else { return 64 }
                    return try SourceWorker(options: options, parent: parent, statistics: statistics).run()
                case .startShadow:
                    guard let options = command.shadow else { return 64 }
                    return try ShadowWorker(options: options, parent: parent, statistics: statistics).run()
                default:
                    return 64
                }
            } catch {
                try? parent.send(WorkerEvent(.failed, reason: "\(error)"))
                return 1
            }
        } catch {
            Log.error("Worker: \(error)")
            return 1
        }
    }
}
