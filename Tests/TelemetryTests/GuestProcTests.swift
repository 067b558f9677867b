import XCTest
@testable import Telemetry

final class GuestProcTests: XCTestCase {
    func testTasks() {
        var tasks = GuestProc.Tasks()
        GuestProc.add(loadavg: "0.25 0.18 0.12 3/480 11206\n", to: &tasks)
        GuestProc.add(stat: "cpu  1 2 3 4\nintr 5 6 7\nctxt 8\nbtime 9\nprocesses 4711\nprocs_running 2\nprocs_blocked 1\nsoftirq 1 2\n", to: &tasks)
        XCTAssertEqual(tasks, GuestProc.Tasks(load1m: 0.25, running: 2, all: 480, blocked: 1, forks: 4711))
        for text in ["", "nan 1 1 1/1 1", "1 1 1 x/y", "-1 0 0 1/-2 0", "inf 0 0 99999999999999999999/1 1"] {
            var tasks = GuestProc.Tasks()
            GuestProc.add(loadavg: text, to: &tasks)
            GuestProc.add(stat: "processes -1\nprocs_blocked x\nprocs_running 1 2\n", to: &tasks)
            XCTAssertTrue([tasks.load1m, tasks.blocked].allSatisfy { $0.map { $0.isFinite && $0 >= 0 } ?? true }, text)
            XCTAssertNil(tasks.forks)
        }
    }

    func testProcess() {
        let line = "1234 (a (b) c) S 1 1234 1234 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 3 0 555 104857600 2048 18446744073709551615 1 1 0"
        XCTAssertEqual(GuestProc.process(line[...]),
                       GuestProc.Process(pid: 1234, parent: 1, name: "a (b) c", state: "S", threads: 3, cpuSeconds: 4, residentPages: 2048))
        for cut in line.indices { _ = GuestProc.process(line[..<cut]) }
        for text in ["", "()", ")(", "1 (x)", "-1 (x) S 1", "x (y) S 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2"] { XCTAssertNil(GuestProc.process(text[...]), text) }
    }

    func testLibraries() {
        let maps = """
            55d0 r-xp 00001000 fe:01 1 /usr/bin/cat
            7f00-7f01 r--p 00000000 fe:01 2                    /usr/lib/x86_64-linux-gnu/libc.so.6
            7f01-7f02 r-xp 00001000 fe:01 2                    /usr/lib/x86_64-linux-gnu/libc.so.6
            7f03-7f04 r-xp 00001000 fe:01 3                    /usr/lib/lib ssl.so.3 (deleted)
            7f05-7f06 r-xp 00000000 00:00 0                    [vdso]
            7f07-7f08 rw-p 00000000 fe:01 4                    /usr/lib/data.so
            """
        XCTAssertEqual(GuestProc.libraries(maps: maps), ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/lib ssl.so.3 (deleted)"])
    }

    func testPageSize() {
        func word(_ value: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
        XCTAssertEqual(GuestProc.pageSize(auxv: word(3) + word(0x40) + word(6) + word(65536) + word(0) + word(0)), 65536)
        XCTAssertNil(GuestProc.pageSize(auxv: word(6) + word(1 << 40)))
        XCTAssertNil(GuestProc.pageSize(auxv: word(3) + word(1) + [6]))
        XCTAssertNil(GuestProc.pageSize(auxv: []))
    }
}
