import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.net.URI;
import java.nio.ByteOrder;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.locks.LockSupport;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.ExponentialBackoffRetry;
import org.redisson.Redisson;
import org.redisson.api.RLock;
import org.redisson.api.RedissonClient;
import org.redisson.config.Config;

/**
 * One JVM of the bench: {@code Worker KIND URL NUMBER BOARD} makes a lock and says {@code {}}. Then it answers each line
 * with one of JSON, in seconds: {@code pairs COUNT} times acquire and release; {@code contend INSIDE_US THREADS} lets
 * threads, numbered from NUMBER on, take the lock again and again until the board says stop. On the board, which all
 * processes share, stand who held it last, how often it was another, and whether to stop.
 */
public final class Worker {
    private interface Body { void run() throws Exception; }

    private interface Lock {
        void acquire() throws Exception;
        void release() throws Exception;
    }

    private static final int LAST = 0, HAND_OVERS = 8, STOP = 16;

    public static void main(String[] arguments) throws Exception {
        Lock lock = open(arguments[0], URI.create(arguments[1]));
        long number = Long.parseLong(arguments[2]);
        MappedByteBuffer board;
        try (RandomAccessFile file = new RandomAccessFile(arguments[3], "rw")) {
            board = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 24);
        }
        board.order(ByteOrder.nativeOrder());
        within(lock, () -> { });
        System.out.println("{}");
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
        for (String line = orders.readLine(); line != null; line = orders.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("pairs")) {
                System.out.println(pairs(lock, Integer.parseInt(words[1])));
            } else {
                System.out.println(contend(lock, board, number, Long.parseLong(words[1]), Integer.parseInt(words[2])));
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private static Lock open(String kind, URI where) throws Exception {
        String address = where.getHost() + ":" + where.getPort();
        if (kind.equals("InterProcessMutex")) {
            CuratorFramework client = CuratorFrameworkFactory.newClient(address, new ExponentialBackoffRetry(100, 3));
            client.start();
            InterProcessMutex mutex = new InterProcessMutex(client, "/curator/bench");
            return new Lock() {
                public void acquire() throws Exception { mutex.acquire(); }
                public void release() throws Exception { mutex.release(); }
            };
        }
        Config config = new Config();
        config.useSingleServer().setAddress("redis://" + address);
        RedissonClient client = Redisson.create(config);
        RLock lock = kind.equals("FairLock") ? client.getFairLock("redisson-fair") : client.getLock("redisson");
        return new Lock() {
            public void acquire() { lock.lock(); }
            public void release() { lock.unlock(); }
        };
    }

    private static void within(Lock lock, Body body) throws Exception {
        lock.acquire();
        try {
            body.run();
        } finally {
            lock.release();
        }
    }

    private static String pairs(Lock lock, int count) throws Exception {
        List<String> times = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            long started = System.nanoTime();
            within(lock, () -> { });
            times.add(seconds(System.nanoTime() - started));
        }
        return "{\"times\": " + times + "}";
    }

    private static String contend(Lock lock, MappedByteBuffer board, long number, long insideUs, int threads)
            throws Exception {
        long startedCpu = cpu();
        List<Future<List<String>>> contenders = new ArrayList<>();
        ExecutorService pool = Executors.newFixedThreadPool(threads);
        for (int i = 0; i < threads; i++) {
            long own = number + i;
            contenders.add(pool.submit(() -> waits(lock, board, own, insideUs)));
        }
        List<List<String>> waits = new ArrayList<>();
        for (Future<List<String>> one : contenders) {
            waits.add(one.get());
        }
        pool.shutdown();
        return "{\"waits\": " + waits + ", \"cpu\": " + seconds(cpu() - startedCpu) + "}";
    }

    private static List<String> waits(Lock lock, MappedByteBuffer board, long number, long insideUs) throws Exception {
        List<String> waits = new ArrayList<>();
        boolean[] going = {true};
        while (going[0]) {
            long asked = System.nanoTime();
            within(lock, () -> {
                waits.add(seconds(System.nanoTime() - asked));
                if (board.getLong(LAST) != number) {
                    board.putLong(LAST, number);
                    board.putLong(HAND_OVERS, board.getLong(HAND_OVERS) + 1);
                }
                if (insideUs > 0) {
                    LockSupport.parkNanos(insideUs * 1000);
                }
                going[0] = board.getLong(STOP) == 0;
            });
        }
        return waits;
    }

    private static long cpu() {
        return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    private static String seconds(long nanos) {
        return Double.toString(nanos / 1e9);
    }
}
